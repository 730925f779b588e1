"""Figures: each is the values of several runs. Tables of them become Markdown and JSON; plots.py draws them."""
import datetime
import json
import statistics


def format_number(value):
	if value == 0:
		return "0"
	size = abs(value)
	if size >= 10000:
		return f"{value:,.0f}".replace(",", " ")
	return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.3f}"


class Cell:
	def __init__(self):
		self.values = []
		self.reason = None  # why there is none

	@property
	def median(self):
		return statistics.median(self.values) if self.values else None


class Table:
	"""Rows are cases, columns are peers (or the other way round). Ratios are to one column or one row, measured beside it.

	`units` is one text, or one for each column. A row is named by text; for plots over numbers, by the number's text."""

	def __init__(self, name, title, corner, columns, unit, note="", baseline_column=None, baseline_row=None, better="higher",
		     rows=()):
		self.name, self.title, self.corner, self.columns, self.note = name, title, corner, columns, note
		self.units = unit if isinstance(unit, dict) else {column: unit for column in columns}
		self.unit = unit if isinstance(unit, str) else ""
		self.baseline_column, self.baseline_row, self.better = baseline_column, baseline_row, better
		self.rows = list(rows)  # in this order; others follow as they come
		self.cells = {}

	def cell(self, row, column):
		if row not in self.rows:
			self.rows.append(row)
		return self.cells.setdefault((row, column), Cell())

	def add(self, row, column, value):
		self.cell(row, column).values.append(float(value))

	def skip(self, row, column, reason):
		cell = self.cell(row, column)
		if not cell.values:
			cell.reason = reason

	def median(self, row, column):
		cell = self.cells.get((row, column))
		return cell.median if cell else None

	def ratio(self, row, column):
		"""To the baseline, or None. The baseline itself has none."""
		place = (row, self.baseline_column) if self.baseline_column else (self.baseline_row, column)
		if None in place or place == (row, column):
			return None
		mine, base = self.median(row, column), self.median(*place)
		return mine / base if mine is not None and base else None

	def markdown(self):
		reasons = []
		single = len(set(self.units.values())) == 1
		lines = [f"### {self.title}", ""]
		if self.note:
			lines += [self.note, ""]
		titles = [column if single or not self.units[column] else f"{column} ({self.units[column]})" for column in self.columns]
		lines.append(f"| {self.corner}{f' ({self.unit})' if single and self.unit else ''} | " + " | ".join(titles) + " |")
		lines.append("| --- |" + " ---: |" * len(self.columns))
		for row in self.rows:
			if not any((row, column) in self.cells for column in self.columns):
				continue
			lines.append(f"| {row} | " + " | ".join(self.cell_text(row, column, reasons) for column in self.columns) + " |")
		base = self.baseline_column or self.baseline_row
		lines += ["", f"× is the ratio to *{base}*." if base else ""] if base else []
		lines += [""] + [f"({number}) {reason}  " for number, reason in enumerate(reasons, 1)]
		return "\n".join(lines).rstrip() + "\n"

	def cell_text(self, row, column, reasons):
		cell = self.cells.get((row, column))
		if cell is None:
			return ""
		if not cell.values:
			reason = cell.reason or "not measured"
			if reason not in reasons:
				reasons.append(reason)
			return f"– ({reasons.index(reason) + 1})"
		text = f"**{format_number(cell.median)}**"
		if len(cell.values) > 1:
			text += f" ({format_number(min(cell.values))}–{format_number(max(cell.values))})"
		ratio = self.ratio(row, column)
		return text + (f" ×{ratio:.2f}" if ratio is not None else "")

	def figures(self):
		for row in self.rows:
			for column in self.columns:
				cell = self.cells.get((row, column))
				if cell is None:
					continue
				figure = {"table": self.name, "row": row, "column": column, "unit": self.units[column], "better": self.better}
				if cell.values:
					figure |= {"median": cell.median, "min": min(cell.values), "max": max(cell.values), "values": cell.values}
					if self.ratio(row, column) is not None:
						figure |= {"ratio": self.ratio(row, column), "ratio_to": self.baseline_column or self.baseline_row}
				else:
					figure["skipped"] = cell.reason or "not measured"
				yield figure


class Report:
	def __init__(self, facts, mode, runs):
		self.facts, self.mode, self.runs = facts, mode, runs
		self.sections = []  # (name, title, [tables])
		self.targets = []
		self.failures = []
		self.plots = []  # (file name without ending, title)
		self.started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")

	def section(self, name, title):
		self.sections.append((name, title, []))

	def table(self, *arguments, **options):
		table = Table(*arguments, **options)
		self.sections[-1][2].append(table)
		return table

	def target(self, what, value, relation, limit, unit=""):
		"""A figure beside what it should reach. None as value: not measured in this run."""
		reached = None if value is None else value <= limit if relation == "<=" else value >= limit
		self.targets.append({"what": what, "value": value, "relation": relation, "limit": limit, "unit": unit, "reached": reached})

	def fail(self, what, why):
		self.failures.append({"what": what, "why": why})

	def targets_markdown(self):
		lines = ["## Against the targets", "", "| | measured | wanted | |", "| --- | ---: | ---: | --- |"]
		for target in self.targets:
			value = "–" if target["value"] is None else f"{format_number(target['value'])} {target['unit']}".strip()
			sign = {"<=": "≤", ">=": "≥"}[target["relation"]]
			word = {None: "not measured", True: "reached", False: "**missed**"}[target["reached"]]
			lines.append(f"| {target['what']} | {value} | {sign} {format_number(target['limit'])} {target['unit']} | {word} |")
		return "\n".join(lines) + "\n"

	def markdown(self):
		facts = self.facts
		parts = ["# Benchmarks\n",
			 f"{self.started}, mode {self.mode}, {self.runs} runs of each figure (median, smallest–largest). Linux {facts['kernel']}, "
			 f"{facts['cpus']} CPUs ({facts['cpu']}), {facts['memory_bytes'] / 2**30:.0f} GiB, CRIU {facts['criu']}, "
			 f"{facts['redis']}, {facts['distri_proc']} at {facts['commit']}. Load of the host: "
			 f"{facts['load_before']:.1f} before, {facts.get('load_after', 0):.1f} after. "
			 "`docs/benchmarks.md` says what each figure is.\n"]
		if self.targets:
			parts.append(self.targets_markdown())
		for name, title, tables in self.sections:
			parts.append(f"## {title}\n")
			parts += [table.markdown() for table in tables]
			parts += [f"![{plot_title}]({file}.png)\n" for file, plot_title, section in self.plots if section == name]
		if self.failures:
			parts.append("## What failed\n")
			parts.append("\n".join(f"- {failure['what']}: {failure['why']}" for failure in self.failures) + "\n")
		return "\n".join(parts)

	def as_json(self):
		return {"schema": "distriproc.bench/1", "started": self.started, "mode": self.mode, "runs": self.runs, "host": self.facts,
			"figures": [{"benchmark": name, **figure} for name, _, tables in self.sections for table in tables
				    for figure in table.figures()],
			"targets": self.targets, "failures": self.failures, "plots": [file for file, _, _ in self.plots]}

	def write(self, directory):
		(directory / "results.md").write_text(self.markdown())
		(directory / "results.json").write_text(json.dumps(self.as_json(), indent=1) + "\n")
