"""The data source `icons`: vector icons with exact alpha over procedural scenes, captioned by a grammar."""
