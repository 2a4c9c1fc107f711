"""What is computed faster than upstream does it, each with a test that the result is exact."""
