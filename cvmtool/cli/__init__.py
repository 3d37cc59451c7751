"""The command line. The only zone that knows typer and rich; nothing imports it."""
