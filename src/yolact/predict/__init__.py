"""From pictures to objects: detection, masks, drawings, and how good they are."""
