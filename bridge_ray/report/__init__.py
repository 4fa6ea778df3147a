"""What a person looks at after a run: metrics.json, and one self-contained HTML page."""
