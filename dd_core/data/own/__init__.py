"""Images of a user's own: read from a function, an npz file or class folders, checked, and looked at for a study."""
