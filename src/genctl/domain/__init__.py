"""Hold the pure core: values in, values out; time and chance are arguments."""
