"""Questions with one right answer: what an answer says, and whether it is right."""
