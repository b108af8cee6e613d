/** An agent to be killed: starts the proxy from the JSON in its argument, prints a line when it serves, and stays. */
import {Metrics, Readiness, systemClock} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {startProxy} from '../../../src/proxy/index.ts';
import {startXdsSocket} from '../../../src/proxy/xds.ts';
import {tinyAds} from './ads.ts';

const {config, node, xdsSocketPath} = JSON.parse(process.argv[2]!);
const readiness = new Readiness(['proxy']);
await startXdsSocket({path: xdsSocketPath, services: [tinyAds()], log: silentLogger});
const proxy = await startProxy(
	{
		config,
		node,
		xdsSocketPath,
		statusAddress: '127.0.0.1',
		statusPort: 0,
		gate: readiness.gate('proxy'),
		log: silentLogger,
		metrics: new Metrics(),
		clock: systemClock,
		random: Math.random,
	},
	new AbortController().signal,
);
readiness.onChange(() => {
	if (readiness.isReady) console.log(`serving ${proxy.status().pid}`);
});
setInterval(() => {}, 1000);
