"""The building blocks of the flows: one module per step, and the packages that the steps use."""
