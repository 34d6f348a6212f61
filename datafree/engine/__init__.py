"""The parts of the loop that know no method: student, evaluation, training, device, random numbers, readings."""
