"""Fast networks for CIFAR-10, from one core upwards."""
