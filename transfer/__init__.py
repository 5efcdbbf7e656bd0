"""How pre-trained weights come to a detector, are fine-tuned, evaluated and reported."""
