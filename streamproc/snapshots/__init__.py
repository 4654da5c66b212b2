"""Snapshots: the KV blocks of a partition and what they are of, in files or in an object store.

They only make a start faster: the log is the truth. What is missing, damaged or of another model is said in one line
and computed instead.
"""
