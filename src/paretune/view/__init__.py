"""Local web pages over run folders: `paretune view`. All files but that of the ratings are only read."""
