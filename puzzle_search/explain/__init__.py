"""What a child keeps of its parent and what that saves, and two children side by side."""
