"""What a person sees. Renders values that others have decided."""
