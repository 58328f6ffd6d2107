"""What the hardware and its libraries need: CUDA graphs and streams, oneDNN, memory."""
