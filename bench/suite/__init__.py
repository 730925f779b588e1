"""The benchmarks of DistriProc; bench/run is the way in, docs/benchmarks.md the text about them."""
