"""What an answer's text must be: checked and written as a grammar, tried out in a process of its
own, and followed token by token."""
