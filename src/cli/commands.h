/* commands: one function per subcommand; see cli.h. Each has a line in the table of main.c. */
#ifndef DP_CLI_COMMANDS_H
#define DP_CLI_COMMANDS_H

int cmd_agent(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_checkpoint(int argc, char **argv);
int cmd_clone(int argc, char **argv);
int cmd_commit(int argc, char **argv);
int cmd_criu_hook(int argc, char **argv);
int cmd_exec(int argc, char **argv);
int cmd_events(int argc, char **argv);
int cmd_lazy_pages(int argc, char **argv);
int cmd_migrate(int argc, char **argv);
int cmd_migrate_in(int argc, char **argv);
int cmd_offer(int argc, char **argv);
int cmd_pool(int argc, char **argv);
int cmd_protect(int argc, char **argv);
int cmd_ps(int argc, char **argv);
int cmd_restore(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_spares(int argc, char **argv);
int cmd_stats(int argc, char **argv);
int cmd_stop(int argc, char **argv);

#endif
