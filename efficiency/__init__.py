"""Times, memory and the limits of the device: measured and planned."""
