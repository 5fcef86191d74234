"""What an operator does that spans several services; each act has its plan, and is carried out by it."""
