"""The page: one file a tab, who holds which stream, and which models are in memory."""
