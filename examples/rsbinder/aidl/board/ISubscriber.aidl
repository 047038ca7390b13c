package board;

/** Who is told of notes: a client that is called by the service. */
interface ISubscriber {
    String name();

    oneway void posted(String note);
}
