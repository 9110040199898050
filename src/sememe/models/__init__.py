"""Networks: what computes a prediction. Import the modules; nothing is loaded by importing this package."""
