"""What is learnt: causal LM, seq2seq, classification and tagging."""
