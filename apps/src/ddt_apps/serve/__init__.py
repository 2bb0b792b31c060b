"""ddt serve: trained models over HTTP, in the words of OpenAI's API."""
