"""Pure: values in, values out; the time and chance are arguments."""
