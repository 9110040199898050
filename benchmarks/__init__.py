"""What generation costs, beside the stock backbone and beside the official way of computing; see docs/benchmarks.md."""
