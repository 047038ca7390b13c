package board;

import board.ISubscriber;

/** A board of notes. */
interface IBoard {
    String greet(String name);

    /** Puts a note up; the caller does not wait. */
    oneway void post(String note);

    /** How many notes are up. */
    int notes();

    /** Has a subscriber told of each note, until it dies. Asks for its name before this returns. */
    void subscribe(ISubscriber subscriber);

    /** The names of those who are told. */
    String[] subscribers();

    /** Reads a text to its end, and gives it back in capitals, as another file. */
    ParcelFileDescriptor capitals(in ParcelFileDescriptor text);

    byte[] echo(in byte[] data);

    /** Ends the service. */
    oneway void leave();
}
