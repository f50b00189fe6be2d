"""mtl.load and mtl-predict: what a trained model says of new inputs, in the terms of its user."""
