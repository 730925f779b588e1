"""Plots by gnuplot: one file of panels, as PNG and as SVG, from the very cells of the tables."""
import subprocess

from .process import Failed

COLOURS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#9c755f", "#edc948",
	   "#ff9da7", "#7f7f7f", "#1f6f5c", "#8c1c4b"]
LINE_END = "\\n"  # as gnuplot reads it
PANEL_WIDTH, PANEL_HEIGHT, SINGLE_WIDTH, SINGLE_HEIGHT = 430, 330, 960, 440


class Panel:
	"""Bars: one group for each label. Lines: labels are numbers. `series` is name -> {label: (median, least, most)}."""

	def __init__(self, title, labels, series, kind="bars"):
		self.title, self.kind = title, kind
		self.series = {name: values for name, values in series.items() if values}
		self.labels = [label for label in labels if any(label in values for values in self.series.values())]


def panel_of(table, title=None, kind="bars", columns=None, rows=None, by_column=True, rename=None):
	"""Series are the table's columns (or its rows), labels the other."""
	columns, rows = columns or table.columns, rows or table.rows
	names, labels = (columns, rows) if by_column else (rows, columns)
	series = {}
	labels = [label for label in labels if label in (table.rows if by_column else columns)]
	for name in names:
		for label in labels:
			cell = table.cells.get((label, name) if by_column else (name, label))
			if cell and cell.values:
				shown = (rename or {}).get(label, label)
				series.setdefault(name, {})[shown] = (cell.median, min(cell.values), max(cell.values))
	return Panel(title or table.title, [(rename or {}).get(label, label) for label in labels], series, kind)


def quote(text):
	return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"').replace("×", "x") + '"'


def data_block(number, panel):
	lines = [f"$data{number} << END"]
	for place, label in enumerate(panel.labels):
		row = [label if panel.kind == "lines" else quote(label)]
		for values in panel.series.values():
			row += [f"{value:g}" for value in values[label]] if label in values else ["NaN", "NaN", "NaN"]
		lines.append(" ".join([str(place)] + row))
	return "\n".join(lines + ["END"])


def plot_line(number, panel, colours):
	count = len(panel.series)
	parts = []
	for index, name in enumerate(panel.series):
		median = 3 + index * 3
		colour = colours[name]
		if panel.kind == "lines":
			parts.append(f"$data{number} using 2:{median}:{median + 1}:{median + 2} with yerrorlines "
				     f"lw 2 pt 7 ps 0.7 lc rgb '{colour}' title {quote(name)}")
		else:
			width = 0.8 / count
			place = f"($1 + {-0.4 + width * (index + 0.5):.4f})"
			parts.append(f"$data{number} using {place}:{median}:({width * 0.92:.4f}) with boxes fs solid 0.9 noborder "
				     f"lc rgb '{colour}' title {quote(name)}")
			parts.append(f"$data{number} using {place}:{median + 1}:(0):(${median + 2} - ${median + 1}) with vectors nohead lw 1.5 "
				     "lc rgb '#333333' notitle")
	return "plot " + ", \\\n  ".join(parts)


def axes(panel, options):
	lines = [f"set title {quote(panel.title)}", "unset logscale", "set autoscale"]
	if panel.kind == "lines":
		lines += ["set xtics auto norotate", "set xrange [*:*]", "set format x '%.0b%B'"]
		if options["log_x"]:
			lines += ["set logscale x 2" if options["log_x"] == 2 else "set logscale x"]
		else:
			lines.append("set offsets graph 0.05, graph 0.05, 0, 0")
	else:
		longest = max((len(part) for label in panel.labels for part in str(label).split(", ")), default=0)
		turn = "rotate by -25" if longest * len(panel.labels) > (45 if options["grid"] else 110) else "norotate"
		texts = [quote(label).replace("%", "%%").replace(", ", "," + LINE_END) for label in panel.labels]
		tics = ", ".join(f"{text} {place}" for place, text in enumerate(texts))
		lines += [f"set xtics ({tics}) {turn}", f"set xrange [-0.6:{len(panel.labels) - 0.4}]", "set offsets 0, 0, 0, 0"]
	lines += ["set logscale y", "set format y '%.0s%c'"] if options["log_y"] else ["set yrange [0:*]", "set format y '%g'"]
	return lines


def key_of(names, colours, width, share):
	"""One key for all panels, along the bottom: a plot of nothing but names."""
	columns = max(1, int(width / (70 + 7 * max(map(len, names)))))
	return ["reset", f"set size 1,{share:.4f}", "set origin 0,0", "unset tics", "unset border", "set xrange [0:1]", "set yrange [0:1]",
		f"set key center center horizontal maxrows {-(-len(names) // columns)}",
		"plot " + ", ".join(f"-1 with boxes fs solid 0.9 lc rgb '{colours[name]}' title {quote(name)}" for name in names)]


def script_of(title, panels, y_label, x_label, log_y, log_x, terminal, output):
	names = list(dict.fromkeys(name for panel in panels for name in panel.series))
	colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
	many = len(panels) > 1
	columns = min(len(panels), 3)
	lines_of_panels = -(-len(panels) // columns)
	width = columns * PANEL_WIDTH if many else SINGLE_WIDTH
	key_lines = -(-len(names) // max(1, int(width / (70 + 7 * max(map(len, names))))))
	key_height = 20 + 20 * key_lines
	height = lines_of_panels * (PANEL_HEIGHT if many else SINGLE_HEIGHT) + 40 + key_height
	share = key_height / height
	script = [f"set terminal {terminal} size {width},{height} font 'Sans,{10 if many else 11}' background rgb 'white'",
		  f"set output {quote(output)}", "set encoding utf8", "set border 3", "set tics nomirror", "set grid y lc rgb '#dddddd'",
		  "set errorbars small", "set datafile missing 'NaN'", f"set ylabel {quote(y_label)}",
		  f"set xlabel {quote(x_label)} offset 0,0.5", "unset key"]
	script += [data_block(number, panel) for number, panel in enumerate(panels)]
	script.append(f"set multiplot title {quote(title)} font ',13'")
	for number, panel in enumerate(panels):
		column, line = number % columns, number // columns
		panel_height = (1 - share - 30 / height) / lines_of_panels
		script += [f"set size {1 / columns:.4f},{panel_height:.4f}",
			   f"set origin {column / columns:.4f},{share + (lines_of_panels - 1 - line) * panel_height:.4f}"]
		script += axes(panel, {"log_x": log_x, "log_y": log_y, "grid": many}) + [plot_line(number, panel, colours)]
	return "\n".join(script + key_of(names, colours, width, share) + ["unset multiplot"]) + "\n"


def draw(context, file, title, panels, y_label="", x_label="", log_y=False, log_x=False):
	"""Writes FILE.png and FILE.svg into the results; nothing where no panel has data or gnuplot is missing."""
	panels = [panel for panel in panels if panel.series]
	if not panels or context.host.lacks("gnuplot"):
		return
	if len(panels) == 1:
		panels[0].title = ""  # the whole plot has one
	for terminal, ending in (("pngcairo", "png"), ("svg", "svg")):
		script = script_of(title, panels, y_label, x_label, log_y, log_x, terminal, context.out / f"{file}.{ending}")
		done = subprocess.run(["gnuplot"], input=script, capture_output=True, text=True, timeout=60)
		if done.returncode:
			(context.work / f"{file}.gnuplot").write_text(script)
			raise Failed(f"gnuplot {file}: {done.stderr.strip()[-300:]}")
	context.report.plots.append((file, title, context.report.sections[-1][0]))
