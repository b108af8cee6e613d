/** The DER encoder alone: the whole of node-forge would load ciphers and TLS that nobody here uses. */
declare module 'node-forge/lib/asn1.js' {
	import {asn1} from 'node-forge';
	export default asn1;
}
