"""The commands of ``python -m atmnet``, one module each: HELP, add_arguments(parser), run(args, parser) and its exit status."""
