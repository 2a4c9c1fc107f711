"""`python -m benchmarks.on_gpu`: exactness, speed and memory on one data-centre GPU, in 9 minutes.

It needs torch, transformers and PEFT, and downloads nothing: bases have random weights, and what
else is missing on the machine travels in a folder that `python -m benchmarks.on_gpu.pack` makes.
"""
