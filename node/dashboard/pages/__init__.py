"""The pages, drawn with NiceGUI."""
