import {startEchoApp} from './echo-app.ts';

/** The echo application as a process of its own, for a network namespace: `node src/sandbox/echo-main.ts NAME PORT`. */
const [name = 'echo', port = '8080'] = process.argv.slice(2);
await startEchoApp(name, {host: '0.0.0.0', port: Number(port)});
console.log('started');
