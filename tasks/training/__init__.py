"""Everything that imports torch.  Runs only in the child process that `tasks.core.launch` starts."""
