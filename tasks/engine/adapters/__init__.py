"""Adapters: configure, inject, read, write, save, load, switch, merge and combine."""
