"""The objectives: causal LM, seq2seq, sequence and token classification."""
