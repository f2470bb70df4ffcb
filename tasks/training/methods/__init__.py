"""How each method of `tasks/methods.py` makes a loaded model trainable, and what it leaves behind.  The table is in `table`."""
