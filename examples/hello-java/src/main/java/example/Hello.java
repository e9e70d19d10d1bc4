package example;

import com.amazonaws.services.lambda.runtime.Context;
import com.amazonaws.services.lambda.runtime.RequestHandler;
import java.util.Map;

/** Greets whoever the event names. */
public class Hello implements RequestHandler<Map<String, String>, Map<String, String>> {
    @Override
    public Map<String, String> handleRequest(Map<String, String> event, Context context) {
        String name = event.getOrDefault("name", "world");
        System.out.println("saying hello to " + name);
        if (name.equals("nobody")) {
            throw new IllegalArgumentException("nobody is here");
        }
        return Map.of("message", "hello, " + name, "request_id", context.getAwsRequestId());
    }
}
