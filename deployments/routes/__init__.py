"""The HTTP routes, one module per group. A route parses, calls one thing, and renders."""
