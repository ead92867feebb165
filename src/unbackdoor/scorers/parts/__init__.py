"""What scorers are made of and how they are asked for: judges behind an endpoint, rubrics, stored answers."""
