"""What is built from what: plans, the flow, the command line."""
