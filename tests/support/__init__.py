"""What several tests need: stand-ins at the border, and the real parts made small."""
