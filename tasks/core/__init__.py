"""What every stage stands on: errors, specs, the store, child processes.  Imports nothing above itself."""
