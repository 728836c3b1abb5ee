"""One module per group of commands: arguments in, one function of the package, text out."""
