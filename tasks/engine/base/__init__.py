"""Find, load and describe a base model.

Here belongs what is known of a base without any adapter: where its files are, its dtype and
quantization, its tokenizer, what its task needs of it, and how long an input it can read.
"""
