"""What is shown in Chinese."""
