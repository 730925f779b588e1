/* cli/pool: the commands of `distri-proc pool`; pool.c chooses among them. */
#ifndef DP_CLI_POOL_H
#define DP_CLI_POOL_H

int cmd_pool_serve(int argc, char **argv);
int cmd_pool_keygen(int argc, char **argv);
int cmd_pool_scrub(int argc, char **argv);

#endif
