"""What the benchmarks ask about the machine they run on."""
